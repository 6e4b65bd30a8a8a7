// A client: a command "N" dials -target (an echo) N times in sequence, sends one
// byte, reads one, closes. True numbers per dial: one productive write wakeup
// (connect, resolved by getsockopt) and one productive read wakeup, each missing
// where the other side was quicker than the park (a target that answers after some
// milliseconds makes the reads exactly N); nothing spurious. The command itself is one read wakeup more.
package main

import (
	"flag"
	"net"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	target := flag.String("target", "", "an echo service")
	flag.Parse()
	kit.Commands(kit.Listen(*addr), func(_ net.Conn, n int) string {
		buf := make([]byte, 1)
		for i := 0; i < n; i++ {
			c, err := net.Dial("tcp", *target)
			kit.Must(err)
			c.Write(buf)
			_, err = c.Read(buf)
			kit.Must(err)
			c.Close()
		}
		return "done"
	})
}
