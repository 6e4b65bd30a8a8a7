// Package kit holds what the ground-truth services share.
//
// Each service does a known number of things that wake a goroutine. Its header
// says how many, for *spaced* messages: the next one is sent after the last one was
// answered and its reader has had a few milliseconds to park. These numbers don't
// include what every TCP client causes:
//   - accepting: one productive wakeup of the listener per spaced connection;
//   - the end: one productive wakeup (read returns 0) when the client closes;
//   - a new socket gets an event immediately because it is writable, and each message's
//     event reports that again: events that nobody on the write side claims.
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

// Bind listens, but doesn't print that yet.
func Bind(addr string) *net.TCPListener {
	l, err := net.Listen("tcp", addr)
	Must(err)
	return l.(*net.TCPListener)
}

// Ready prints where the service listens; a service calls it when everything listens.
func Ready(l net.Listener) { fmt.Println("ready on", l.Addr()) }

// Listen is Bind and Ready.
func Listen(addr string) *net.TCPListener {
	l := Bind(addr)
	Ready(l)
	return l
}

// Serve handles each connection on its own goroutine, and closes it.
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

// Echo has a buffer larger than any message of the tests: one read per message.
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
// wakeup per spaced command, in addition to what do causes.
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
