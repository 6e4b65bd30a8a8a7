package main

import (
	"log"
	"net"
	"sort"
	"syscall"
	"time"
	"unsafe"
)

// Long enough that reading the clock does not count, short enough that most see no interrupt.
const batch = time.Millisecond

type operation struct {
	Name string  `json:"name"`
	NS   float64 `json:"ns"`
}

// micro repeats each operation for that long. With GOMAXPROCS=1 no goroutine finds another one already awake:
// a round trip is exactly two wakeups.
func micro(each time.Duration) []operation {
	pipe := newPipe()
	defer pipe.close()
	overTCP, closeTCP := tcpPingPong()
	defer closeTCP()
	overChannels, closeChannels := channelPingPong()
	defer closeChannels()
	return []operation{
		{"getppid", fastest(each, getppid)},
		{"read, EAGAIN", fastest(each, pipe.readInVain)},
		{"write + read", fastest(each, pipe.writeAndRead)},
		{"network wakeup", fastest(each, overTCP) / 2},
		{"ready call", fastest(each, overChannels) / 2},
	}
}

// fastest is the time in ns that one of n operations takes in the fastest tenth of the batches: other work on
// the machine can only add to it.
func fastest(each time.Duration, run func(n int)) float64 {
	n := 1
	for elapsed(run, n) < batch {
		n *= 2
	}
	var batches []float64
	for end := time.Now().Add(each); len(batches) == 0 || time.Now().Before(end); {
		batches = append(batches, float64(elapsed(run, n))/float64(n))
	}
	sort.Float64s(batches)
	return batches[len(batches)/10]
}

func elapsed(run func(n int), n int) time.Duration {
	start := time.Now()
	run(n)
	return time.Since(start)
}

// getppid is the cheapest syscall, and one that no tool watches.
func getppid(n int) {
	for ; n > 0; n-- {
		syscall.RawSyscall(syscall.SYS_GETPPID, 0, 0, 0)
	}
}

type pipe struct{ read, write uintptr }

func newPipe() pipe {
	var ends [2]int
	must(syscall.Pipe2(ends[:], syscall.O_NONBLOCK|syscall.O_CLOEXEC))
	return pipe{uintptr(ends[0]), uintptr(ends[1])}
}

func (p pipe) close() {
	syscall.Close(int(p.read))
	syscall.Close(int(p.write))
}

func (p pipe) readInVain(n int) {
	for ; n > 0; n-- {
		if errno := transfer(syscall.SYS_READ, p.read); errno != syscall.EAGAIN {
			log.Fatalf("reading an empty pipe: %v", errno)
		}
	}
}

func (p pipe) writeAndRead(n int) {
	for ; n > 0; n-- {
		if errno := transfer(syscall.SYS_WRITE, p.write); errno != 0 {
			log.Fatalf("writing to a pipe: %v", errno)
		}
		if errno := transfer(syscall.SYS_READ, p.read); errno != 0 {
			log.Fatalf("reading from a pipe: %v", errno)
		}
	}
}

// transfer reads or writes one byte, past the Go scheduler, whose own syscalls would count otherwise.
func transfer(call, fd uintptr) syscall.Errno {
	var b [1]byte
	_, _, errno := syscall.RawSyscall(call, fd, uintptr(unsafe.Pointer(&b)), 1)
	return errno
}

// tcpPingPong has an echo at the other end of a connection over loopback; each round trip wakes both ends.
func tcpPingPong() (run func(n int), stop func()) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	near, err := net.Dial("tcp", listener.Addr().String())
	must(err)
	far, err := listener.Accept()
	must(err)
	listener.Close()
	go func() {
		var b [1]byte
		for {
			if _, err := far.Read(b[:]); err != nil {
				far.Close()
				return
			}
			_, err := far.Write(b[:])
			must(err)
		}
	}()
	run = func(n int) {
		var b [1]byte
		for ; n > 0; n-- {
			_, err := near.Write(b[:])
			must(err)
			_, err = near.Read(b[:])
			must(err)
		}
	}
	return run, func() { near.Close() }
}

// channelPingPong wakes through runtime.ready, and makes no syscall.
func channelPingPong() (run func(n int), stop func()) {
	ping, pong := make(chan int), make(chan int)
	go func() {
		for i := range ping {
			pong <- i
		}
	}()
	run = func(n int) {
		for ; n > 0; n-- {
			ping <- n
			<-pong
		}
	}
	return run, func() { close(ping) }
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
