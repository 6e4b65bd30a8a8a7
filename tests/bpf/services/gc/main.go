// Ready calls of the runtime itself, and of the program. A command "N" collects garbage N times, while other
// goroutines run that have to be stopped for it, and wakes a goroutine N times. True numbers: N ready calls
// of the program, besides those that the command itself may take; and at least one of the runtime, which
// wakes the sweeper, in most of the N collections. With -alone nothing else runs, memory is returned to the
// system, and a finalizer runs: no ready calls of the program.
package main

import (
	"flag"
	"net"
	"runtime"
	"runtime/debug"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	alone := flag.Bool("alone", false, "wake nobody")
	flag.Parse()
	wake := make(chan bool)
	go func() {
		for range wake {
		}
	}()
	kit.Commands(kit.Listen(*addr), func(_ net.Conn, n int) string {
		for i := 0; i < n; i++ {
			if *alone {
				garbage := make([]byte, 1<<20)
				runtime.SetFinalizer(&garbage[0], func(*byte) {})
				debug.FreeOSMemory() // also collects garbage
				continue
			}
			runtime.GC()
			runtime.Gosched() // the other one parks
			send(wake)
		}
		return "done"
	})
}

func send(wake chan bool) { wake <- true }
