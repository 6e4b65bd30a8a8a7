// Echo with two readers on each connection: the conn and its duplicate, each with its own pollDesc. True
// numbers: each spaced ping = one productive and one spurious read wakeup (spurious = 0.5); the end of a
// connection wakes both, productively.
package main

import (
	"flag"
	"net"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	flag.Parse()
	kit.Serve(kit.Listen(*addr), func(c net.Conn) {
		f, err := c.(*net.TCPConn).File()
		kit.Must(err)
		d, err := net.FileConn(f)
		kit.Must(err)
		f.Close() // it is in the poller too
		go func() {
			defer d.Close()
			kit.Echo(d)
		}()
		kit.Echo(c)
	})
}
