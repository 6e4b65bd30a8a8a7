package main

import (
	"log"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

const (
	workers   = 4
	workerEnv = "PINGD_WORKER"
)

// Done: to use all CPUs "like nginx", the service starts copies of itself that
// accept from one inherited listener.
//
// Seen: each connection wakes every worker. One accepts it, the others get EAGAIN:
// up to three spurious wakeups of four. The quicker the first, the fewer: a worker
// that comes too late to its poll is spared.
//
// Fix: one process (Go uses all CPUs), or a listener each with SO_REUSEPORT.
func servePreforked(listener *net.TCPListener) {
	// Pdeathsig is sent when the thread that forked ends, not the process.
	runtime.LockOSThread()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)

	exe, err := os.Executable()
	if err != nil {
		log.Fatal(err)
	}
	raw, err := listener.SyscallConn()
	if err != nil {
		log.Fatal(err)
	}
	var pids []int
	raw.Control(func(fd uintptr) {
		for i := 0; i < workers; i++ {
			// Not os/exec: it would make the listener blocking for everybody.
			pid, err := syscall.ForkExec(exe, os.Args, &syscall.ProcAttr{
				Env:   append(os.Environ(), workerEnv+"=1"),
				Files: []uintptr{0, 1, 2, fd},
				Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
			})
			if err != nil {
				log.Fatal(err)
			}
			pids = append(pids, pid)
		}
	})
	listener.Close() // else the parent's poller hears of every connection too

	<-stop
	for _, pid := range pids {
		syscall.Kill(pid, syscall.SIGTERM)
	}
	for _, pid := range pids {
		syscall.Wait4(pid, nil, 0, nil)
	}
}

func isWorker() bool { return os.Getenv(workerEnv) != "" }

func inheritedListener() *net.TCPListener {
	file := os.NewFile(3, "listener")
	listener, err := net.FileListener(file)
	if err != nil {
		log.Fatal(err)
	}
	file.Close()
	return listener.(*net.TCPListener)
}
