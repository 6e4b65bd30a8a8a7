// Package kit holds what the ground-truth services share.
//
// Each service does a known number of things that wake a goroutine. Its header
// says how many, for *spaced* messages: the next is sent when the answer to the
// last has come and its reader has had a few milliseconds to park. Not in these
// numbers, since every TCP client causes them alike:
//   - accepting: one productive wakeup of the listener a spaced connection;
//   - the end: one productive wakeup (read returns 0) when the client closes;
//   - the pollDesc of a new socket hears at once that it is writable, and each
//     message's event says so again: events that nobody on the write side claims.
package kit

import (
	"bufio"
	"fmt"
	"log"
	"net"
	"strconv"
)

// Must ends the service on an error: a half-working one has no true numbers.
func Must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// Bind listens without saying so yet.
func Bind(addr string) *net.TCPListener {
	l, err := net.Listen("tcp", addr)
	Must(err)
	return l.(*net.TCPListener)
}

// Ready says where the service listens; a service calls it when all of it does.
func Ready(l net.Listener) { fmt.Println("ready on", l.Addr()) }

// Listen is Bind and Ready.
func Listen(addr string) *net.TCPListener {
	l := Bind(addr)
	Ready(l)
	return l
}

// Serve handles each connection on a goroutine of its own, and closes it.
func Serve(l net.Listener, handle func(net.Conn)) {
	for {
		c, err := l.Accept()
		Must(err)
		go func() {
			defer c.Close()
			handle(c)
		}()
	}
}

// Echo has a buffer larger than any message of the tests: one read a message.
func Echo(c net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

// Commands answers each line "N" with the line that do returns: one productive
// wakeup a spaced command, apart from what do causes.
func Commands(l net.Listener, do func(c net.Conn, n int) string) {
	Serve(l, func(c net.Conn) {
		for lines := bufio.NewScanner(c); lines.Scan(); {
			n, err := strconv.Atoi(lines.Text())
			if err != nil {
				fmt.Fprintln(c, err)
				continue
			}
			fmt.Fprintln(c, do(c, n))
		}
	})
}
