// Descriptors that are closed with a pending wakeup, and whose numbers are reused at once. A command "N" does
// N times: on a Unix connection a reader (RawConn.Read) is woken, and leaves without a syscall; the
// connection is closed; another one gets its number, whose reader tries, parks and is woken. It answers how
// often the number was the same: N. True numbers: N abandoned wakeups and N productive ones, and the
// command's one; nothing spurious, though each new reader's first try on that number gets EAGAIN.
package main

import (
	"flag"
	"net"
	"os"
	"strconv"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	flag.Parse()
	// Unix connections are established at once: connecting and accepting wakes no goroutine. The abstract
	// name leaves no file behind.
	inner, err := net.Listen("unix", "@reuse-"+strconv.Itoa(os.Getpid()))
	kit.Must(err)
	pair := func() (*net.UnixConn, net.Conn) {
		c, err := net.Dial("unix", inner.Addr().String())
		kit.Must(err)
		p, err := inner.Accept()
		kit.Must(err)
		return c.(*net.UnixConn), p
	}
	kit.Commands(kit.Listen(*addr), func(_ net.Conn, n int) string {
		same := 0
		for i := 0; i < n; i++ {
			c, p := pair()
			left := wake(c, p, func() {
				raw, err := c.SyscallConn()
				kit.Must(err)
				woken := false
				kit.Must(raw.Read(func(uintptr) bool {
					defer func() { woken = true }()
					return woken
				}))
			})
			c.Close()
			d, q := pair()
			if left == wake(d, q, func() { d.Read(make([]byte, 1)) }) {
				same++
			}
			d.Close()
			p.Close()
			q.Close()
		}
		return strconv.Itoa(same)
	})
}

// wake calls read, waits for it to park, sends it a byte and returns the descriptor of c.
func wake(c *net.UnixConn, peer net.Conn, read func()) (fd uintptr) {
	raw, err := c.SyscallConn()
	kit.Must(err)
	kit.Must(raw.Control(func(number uintptr) { fd = number }))
	done := make(chan bool)
	go func() {
		read()
		close(done)
	}()
	kit.Parked(2) // it, and the acceptor
	peer.Write([]byte("x"))
	<-done
	return fd
}
