// dup, but each read(2) has another stack: one of 4,096 ways through walk. True numbers: as for dup. The
// kernel has a slot for each stack by its hash, which may be taken.
package main

import (
	"flag"
	"net"
	"syscall"

	"services/kit"
)

const turns = 12

//go:noinline
func walk(fd int, buf []byte, way, turn int) (int, error) {
	if turn == turns {
		return syscall.Read(fd, buf)
	}
	if way>>turn&1 == 0 {
		return walk(fd, buf, way, turn+1)
	}
	n, err := walk(fd, buf, way, turn+1)
	return n, err
}

func echo(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	kit.Must(err)
	buf := make([]byte, 64<<10)
	for n, way := 0, 0; ; {
		err = raw.Read(func(fd uintptr) bool {
			way++
			var err error
			n, err = walk(int(fd), buf, way, 0)
			return err != syscall.EAGAIN
		})
		if err != nil || n <= 0 {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	flag.Parse()
	kit.Serve(kit.Listen(*addr), func(c net.Conn) {
		f, err := c.(*net.TCPConn).File()
		kit.Must(err)
		d, err := net.FileConn(f)
		kit.Must(err)
		f.Close()
		go func() {
			defer d.Close()
			echo(d.(*net.TCPConn))
		}()
		echo(c.(*net.TCPConn))
	})
}
