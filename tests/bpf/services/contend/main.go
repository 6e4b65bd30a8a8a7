// One descriptor that many use at once: a goroutine parks on it, and -threads threads keep checking whether
// there is something to read, without taking it. A command "N" sends the goroutine N bytes, each when it is
// parked, and answers "done" when all have been read. True numbers: N wakeups, each resolved once, by the
// first call that returns, and the command's one.
package main

import (
	"flag"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"unsafe"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	threads := flag.Int("threads", 4, "how many look")
	flag.Parse()
	runtime.GOMAXPROCS(*threads + 3) // one of them polls
	inner, err := net.Listen("unix", "@contend-"+strconv.Itoa(os.Getpid()))
	kit.Must(err)
	c, err := net.Dial("unix", inner.Addr().String())
	kit.Must(err)
	peer, err := inner.Accept()
	kit.Must(err)
	inner.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	kit.Must(err)
	var fd uintptr
	kit.Must(raw.Control(func(number uintptr) { fd = number }))
	var unread int64
	for i := 0; i < *threads; i++ {
		go func() {
			for ; ; runtime.Gosched() {
				for atomic.LoadInt64(&unread) > 0 {
					look(fd)
				}
			}
		}()
	}
	go func() {
		for b := make([]byte, 1); ; atomic.AddInt64(&unread, -1) {
			_, err := c.Read(b)
			kit.Must(err)
		}
	}()
	kit.Commands(kit.Listen(*addr), func(_ net.Conn, n int) string {
		for i := 0; i < n; i++ {
			kit.Parked(2) // it, and the acceptor
			atomic.AddInt64(&unread, 1)
			peer.Write([]byte("x"))
			for atomic.LoadInt64(&unread) > 0 {
				runtime.Gosched()
			}
		}
		return "done"
	})
}

func look(fd uintptr) {
	var b byte
	syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b)), 1, syscall.MSG_PEEK, 0, 0)
}
