// Echo, or with -backend a proxy, that never sees the bytes: io.Copy between TCP
// connections uses splice(2). True numbers: each spaced ping = one productive read
// wakeup resolved by splice, as a proxy two (client's and backend's side).
// A proxy's dial adds one write wakeup, or none if the connect was quicker than the park.
package main

import (
	"flag"
	"io"
	"net"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	backend := flag.String("backend", "", "where to proxy to; empty to echo")
	flag.Parse()
	kit.Serve(kit.Listen(*addr), func(c net.Conn) {
		if *backend == "" {
			io.Copy(c, c)
			return
		}
		b, err := net.Dial("tcp", *backend)
		if err != nil {
			return
		}
		go func() {
			io.Copy(b, c)
			b.(*net.TCPConn).CloseWrite()
		}()
		io.Copy(c, b)
		b.Close()
	})
}
