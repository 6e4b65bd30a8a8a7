// Answers requests of -size bytes with as many bytes, on TCP and, with -path, on a Unix socket. True numbers:
// the reader answers each request after it has slept for -handle; with -writer another goroutine answers
// meanwhile.
//
// -hogs N: goroutines that never yield. -yielders N: goroutines that always have something to run, so that
// only sysmon polls. -accept D: the acceptor sleeps for D after each connection. -burn: handles by using the
// CPU. -dial ADDR: each request is first sent to another such service, over one connection for each of ours.
// -peek D: looks at each request with MSG_PEEK, and reads it D later.
package main

import (
	"flag"
	"io"
	"net"
	"runtime"
	"syscall"
	"time"

	"services/kit"
)

var (
	handle = flag.Duration("handle", 0, "what handling a request takes")
	burn   = flag.Bool("burn", false, "use the CPU meanwhile")
	accept = flag.Duration("accept", 0, "pause after each accept")
	writer = flag.Bool("writer", false, "answer from another goroutine")
	size   = flag.Int("size", 4, "bytes of a request")
	dial   = flag.String("dial", "", "the service to ask first")
	peek   = flag.Duration("peek", 0, "look at each request so long before it is read")
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	path := flag.String("path", "", "a Unix socket, too")
	cpu := flag.Int("cpu", 0, "GOMAXPROCS; 0 leaves it")
	hogs := flag.Int("hogs", 0, "goroutines that never yield")
	yielders := flag.Int("yielders", 0, "goroutines that always yield")
	flag.Parse()
	runtime.GOMAXPROCS(*cpu)
	for i := 0; i < *hogs; i++ {
		go spin(1<<63-1, func() {})
	}
	for i := 0; i < *yielders; i++ {
		go func() {
			for {
				spin(50*time.Microsecond, func() {})
				runtime.Gosched()
			}
		}()
	}
	if *path != "" {
		u, err := net.Listen("unix", *path)
		kit.Must(err)
		go serve(u)
	}
	serve(kit.Listen(*addr))
}

func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		kit.Must(err)
		go answer(c)
		time.Sleep(*accept)
	}
}

func spin(d time.Duration, do func()) {
	for begun := time.Now(); time.Since(begun) < d; {
		do()
	}
}

// look waits for data without reading it.
func look(c net.Conn) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	kit.Must(err)
	raw.Read(func(fd uintptr) bool {
		_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK)
		return err != syscall.EAGAIN
	})
}

func answer(c net.Conn) {
	defer c.Close()
	answers := make(chan []byte, 100)
	defer close(answers)
	if *writer {
		go func() {
			for a := range answers {
				c.Write(a)
			}
		}()
	}
	var backend net.Conn
	if *dial != "" {
		var err error
		backend, err = net.Dial("tcp", *dial)
		kit.Must(err)
		defer backend.Close()
	}
	for {
		if *peek > 0 {
			look(c)
			time.Sleep(*peek)
		}
		request := make([]byte, *size)
		if _, err := io.ReadFull(c, request); err != nil {
			return
		}
		if backend != nil {
			backend.Write(request)
			io.ReadFull(backend, make([]byte, *size))
		}
		if *writer {
			answers <- request
		}
		if *burn {
			spin(*handle, func() {})
		} else {
			time.Sleep(*handle)
		}
		if *writer {
			continue
		}
		if _, err := c.Write(request); err != nil {
			return
		}
	}
}
