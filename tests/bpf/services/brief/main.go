// A program that ends at once: it sends itself -n pings in a few milliseconds, each of which wakes two
// goroutines.
package main

import (
	"flag"
	"io"
	"net"

	"services/kit"
)

func main() {
	n := flag.Int("n", 50, "pings")
	flag.Parse()
	l := kit.Bind("127.0.0.1:0")
	go kit.Serve(l, kit.Echo)
	c, err := net.Dial("tcp", l.Addr().String())
	kit.Must(err)
	for i := 0; i < *n; i++ {
		_, err := c.Write([]byte("ping"))
		kit.Must(err)
		_, err = io.ReadFull(c, make([]byte, 4))
		kit.Must(err)
	}
}
