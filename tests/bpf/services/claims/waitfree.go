package main

import (
	"errors"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
)

// ErrBusy means that the call would have had to wait. The caller decides what to do instead.
var ErrBusy = errors.New("busy")

var wrap = map[string]func(*net.TCPConn) net.Conn{
	"net":      func(c *net.TCPConn) net.Conn { return c },
	"trylock":  func(c *net.TCPConn) net.Conn { return &tryLocked{Conn: c} },
	"nonblock": newNonBlocking,
}

// tryLocked returns ErrBusy if another goroutine is in the same call; Read still waits for data.
type tryLocked struct {
	net.Conn
	reading, writing int32
}

func (c *tryLocked) Read(b []byte) (int, error) {
	if !atomic.CompareAndSwapInt32(&c.reading, 0, 1) {
		return 0, ErrBusy
	}
	defer atomic.StoreInt32(&c.reading, 0)
	return c.Conn.Read(b)
}

func (c *tryLocked) Write(b []byte) (int, error) {
	if !atomic.CompareAndSwapInt32(&c.writing, 0, 1) {
		return 0, ErrBusy
	}
	defer atomic.StoreInt32(&c.writing, 0)
	return c.Conn.Write(b)
}

// nonBlocking returns ErrBusy if there is nothing to read yet.
type nonBlocking struct {
	net.Conn
	raw syscall.RawConn
}

func newNonBlocking(c *net.TCPConn) net.Conn {
	raw, err := c.SyscallConn()
	if err != nil {
		panic(err)
	}
	return &nonBlocking{c, raw}
}

func (c *nonBlocking) Read(b []byte) (n int, err error) {
	// Control would work, too; Read does the same as net.Conn, except for the wait.
	failed := c.raw.Read(func(fd uintptr) bool {
		n, err = syscall.Read(int(fd), b)
		return true
	})
	switch {
	case failed != nil:
		return 0, failed
	case err == syscall.EAGAIN || err == syscall.EINTR:
		return 0, ErrBusy
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// patient does what callers of such a connection do: let others run, and try again.
type patient struct{ net.Conn }

func (c patient) Read(b []byte) (int, error) { return again(c.Conn.Read, b) }

func (c patient) Write(b []byte) (int, error) { return again(c.Conn.Write, b) }

func again(call func([]byte) (int, error), b []byte) (int, error) {
	for {
		n, err := call(b)
		if err != ErrBusy {
			return n, err
		}
		runtime.Gosched()
	}
}
