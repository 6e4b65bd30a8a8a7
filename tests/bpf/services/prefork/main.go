// N processes that accept from one inherited listener and echo. True numbers: each
// spaced connection = one productive accept wakeup and 0 to N-1 spurious ones: the kernel always wakes an
// idle child, but the child's poll only returns if no other child has accepted by then. Each spaced ping =
// one productive read wakeup in one child. The parent has no pollDesc for the listener, and none of these.
package main

import (
	"flag"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"services/kit"
)

const childEnv = "PREFORK_CHILD"

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	n := flag.Int("n", 4, "processes that accept")
	flag.Parse()
	if os.Getenv(childEnv) != "" {
		child()
	}
	runtime.LockOSThread() // Pdeathsig is sent when the forking *thread* ends
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	l := kit.Bind(*addr)
	exe, err := os.Executable()
	kit.Must(err)
	raw, err := l.SyscallConn()
	kit.Must(err)
	var opened, begin [2]int
	kit.Must(syscall.Pipe2(opened[:], syscall.O_CLOEXEC))
	kit.Must(syscall.Pipe2(begin[:], syscall.O_CLOEXEC))
	var pids []int
	raw.Control(func(fd uintptr) {
		for i := 0; i < *n; i++ {
			// Not os/exec: it would make the listener blocking for all children.
			pid, err := syscall.ForkExec(exe, os.Args, &syscall.ProcAttr{
				Env:   append(os.Environ(), childEnv+"="+strconv.Itoa(i)),
				Files: []uintptr{0, 1, 2, fd, uintptr(opened[1]), uintptr(begin[0])},
				Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
			})
			kit.Must(err)
			pids = append(pids, pid)
		}
	})
	syscall.Close(opened[1])
	syscall.Read(opened[0], make([]byte, 1)) // ends when every child has closed its end
	syscall.Close(begin[1])
	kit.Ready(l)
	l.Close()
	<-stop
	for _, pid := range pids {
		syscall.Kill(pid, syscall.SIGTERM)
	}
	for _, pid := range pids {
		syscall.Wait4(pid, nil, 0, nil)
	}
	os.Exit(0)
}

// FileListener makes the shared socket blocking for a moment. A sibling that accepted at that moment would
// hang in accept4 unseen, so none begins before all are through.
func child() {
	f := os.NewFile(3, "listener")
	l, err := net.FileListener(f)
	kit.Must(err)
	f.Close() // it is in the poller too
	syscall.Close(4)
	syscall.Read(5, make([]byte, 1))
	syscall.Close(5)
	kit.Serve(l, kit.Echo)
}
