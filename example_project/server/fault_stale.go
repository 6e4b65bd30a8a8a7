package main

import (
	"log"
	"net"
	"syscall"
	"time"
)

// Done: "to save system calls" the connection is drained through its RawConn: read
// until EAGAIN, then wait. Each piece is acknowledged by an audit log in between.
//
// Seen: the drain reads what arrives meanwhile, but the event for it stays stored
// with the connection. The next wait returns immediately, and the read after it gets
// EAGAIN again: one stale retry for each message that comes in two pieces.
//
// Fix: use conn.Read, which forgets old events before it tries, and don't block while draining.
func echoDrained(conn *net.TCPConn) {
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		log.Fatal(err)
	}
	buf := make([]byte, 4096)
	raw.Read(func(fd uintptr) (done bool) {
		for {
			n, err := syscall.Read(int(fd), buf)
			if err == syscall.EAGAIN {
				return false
			}
			if err == syscall.EINTR {
				continue
			}
			if n <= 0 {
				return true
			}
			audit(buf[:n])
			if _, err := conn.Write(buf[:n]); err != nil {
				return true
			}
		}
	})
}

// audit stands for a call to a log that answers within a few milliseconds.
func audit([]byte) { time.Sleep(3 * time.Millisecond) }
