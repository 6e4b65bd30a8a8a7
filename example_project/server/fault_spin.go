package main

import "net"

// Done: an error of Accept is taken for one of the connection that did not come about, and the loop goes on.
//
// Seen: out of descriptors (EMFILE), Accept fails at once, again and again: a CPU's worth of futile accept4, and
// nobody is woken meanwhile.
//
// Fix: wait before the next try, each time longer, as serve and net/http do.
func serveHastily(listener *net.TCPListener) {
	for {
		conn, err := listener.AcceptTCP()
		if err != nil {
			continue
		}
		go echo(conn)
	}
}
