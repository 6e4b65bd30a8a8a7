// Threads that end. A command "N" starts N goroutines one after the other, each locked to a thread. Each uses
// -cpu of CPU time and ends together with its thread; then the command is answered with "done". True numbers:
// the command's one productive read wakeup, N times -cpu in cpu_seconds.
package main

import (
	"flag"
	"net"
	"runtime"
	"syscall"
	"time"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	cpu := flag.Duration("cpu", 50*time.Millisecond, "CPU time of each thread")
	flag.Parse()
	kit.Commands(kit.Listen(*addr), func(_ net.Conn, n int) string {
		for i := 0; i < n; i++ {
			done := make(chan bool)
			go func() {
				runtime.LockOSThread() // and never unlocked: the thread ends with it
				defer close(done)
				for used() < *cpu {
				}
			}()
			<-done
		}
		time.Sleep(5 * time.Millisecond) // for the last thread to end
		return "done"
	})
}

func used() time.Duration {
	var usage syscall.Rusage
	kit.Must(syscall.Getrusage(1, &usage)) // RUSAGE_THREAD
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
