package main

import (
	"log"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"unsafe"
)

const (
	workers   = 4
	workerEnv = "PINGD_WORKER"
)

// Done: to use all CPUs "like nginx", the service starts copies of itself, each on a
// CPU of its own, that accept from one inherited listener.
//
// Seen: each connection wakes every worker. One accepts it, the others get EAGAIN:
// up to three of four wakeups are spurious. The quicker the first worker, the fewer:
// a worker whose poll comes later isn't woken.
//
// Fix: use one process (Go uses all CPUs), or one listener per worker with SO_REUSEPORT.
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
		allowed := cpus()
		for i := 0; i < workers; i++ {
			runOn(allowed[i%len(allowed)]) // and its child, too
			// Not os/exec: it would make the listener blocking for all workers.
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
		runOn(allowed...)
	})
	listener.Close() // else the parent's poller also gets an event for every connection

	<-stop
	for _, pid := range pids {
		syscall.Kill(pid, syscall.SIGTERM)
	}
	for _, pid := range pids {
		syscall.Wait4(pid, nil, 0, nil)
	}
}

type cpuSet [128]byte

// cpus are those that this thread may run on.
func cpus() []int {
	var set cpuSet
	_, _, e := syscall.RawSyscall(syscall.SYS_SCHED_GETAFFINITY, 0, unsafe.Sizeof(set), uintptr(unsafe.Pointer(&set)))
	if e != 0 {
		log.Fatal(e)
	}
	var found []int
	for cpu := 0; cpu < 8*len(set); cpu++ {
		if set[cpu/8]&(1<<(cpu%8)) != 0 {
			found = append(found, cpu)
		}
	}
	return found
}

// runOn moves this thread to these CPUs.
func runOn(cpus ...int) {
	var set cpuSet
	for _, cpu := range cpus {
		set[cpu/8] |= 1 << (cpu % 8)
	}
	_, _, e := syscall.RawSyscall(syscall.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(set), uintptr(unsafe.Pointer(&set)))
	if e != 0 {
		log.Fatal(e)
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
