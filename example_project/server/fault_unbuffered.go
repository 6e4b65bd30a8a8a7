package main

import "net"

// Done: the connection is read byte by byte, as parsers do, without a buffer in between, and written in the same way.
//
// Seen: two I/O calls for each byte: 200 for a wakeup that brought 100 bytes, instead of three.
//
// Fix: read into a buffer, or through a bufio.Reader; collect the answer in a bufio.Writer, and flush it once.
func echoUnbuffered(conn *net.TCPConn) {
	defer conn.Close()
	var b [1]byte
	for {
		if _, err := conn.Read(b[:]); err != nil {
			return
		}
		if _, err := conn.Write(b[:]); err != nil {
			return
		}
	}
}
