// A gateway that forwards each message to -backend (an echo) over a separate connection per client, and the
// answer back. True numbers: each spaced ping = two productive read wakeups here (client's and backend's
// side) and one in the backend; the second is missing if the answer was quicker than the park. Connecting
// adds at most one write wakeup.
package main

import (
	"flag"
	"net"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	backend := flag.String("backend", "", "an echo service")
	flag.Parse()
	kit.Serve(kit.Listen(*addr), func(c net.Conn) {
		b, err := net.Dial("tcp", *backend)
		if err != nil {
			return
		}
		defer b.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			b.Write(buf[:n])
			if n, err = b.Read(buf); err != nil {
				return
			}
			c.Write(buf[:n])
		}
	})
}
