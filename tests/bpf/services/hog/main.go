// On one P (-cpu 1) a command "N" is answered, and then holds that P for N ms in a system call that the
// scheduler doesn't notice; "0" is answered with the goroutine's id. True numbers: a goroutine that is woken
// meanwhile is late by the rest of the N ms, once sysmon has polled (every 10 ms or so). -spin: uses the CPU
// meanwhile, instead of sleeping. -until P: holds the P until the file P exists, at least. Needs
// GODEBUG=asyncpreemptoff=1.
package main

import (
	"flag"
	"fmt"
	"net"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"services/kit"
)

var (
	spin  = flag.Bool("spin", false, "use the CPU meanwhile")
	until = flag.String("until", "", "the file to wait for")
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	cpu := flag.Int("cpu", 1, "GOMAXPROCS")
	flag.Parse()
	runtime.GOMAXPROCS(*cpu)
	kit.Commands(kit.Listen(*addr), func(c net.Conn, n int) string {
		if n == 0 {
			return id()
		}
		fmt.Fprintln(c, "holding")
		hold(time.Duration(n) * time.Millisecond)
		if *until != "" {
			holdUntil(*until)
		}
		return "done"
	})
}

// id returns 18 for "goroutine 18 [running]:…".
func id() string {
	buf := make([]byte, 64)
	return strings.Fields(string(buf[:runtime.Stack(buf, false)]))[1]
}

// Its loop calls nothing that could let others run.
func holdUntil(path string) {
	name, pause := append([]byte(path), 0), syscall.NsecToTimespec(int64(10*time.Millisecond))
	for missing := syscall.ENOENT; missing != 0; {
		syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0)
		_, _, missing = syscall.RawSyscall6(syscall.SYS_FACCESSAT, 0, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0, 0)
	}
}

func hold(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		if !*spin {
			left := syscall.NsecToTimespec(int64(time.Until(end)))
			syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&left)), 0, 0)
		}
	}
}
