// A client that sends as fast as possible: a command "N" makes N pings in a row on each of -clients
// connections to -target (an echo), all at the same time, and answers "done". True numbers: nothing spurious,
// here or in the target; not more productive wakeups than pings, except for connecting and the command's one.
package main

import (
	"flag"
	"io"
	"net"
	"sync"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	target := flag.String("target", "", "an echo service")
	clients := flag.Int("clients", 32, "connections")
	flag.Parse()
	var connections []net.Conn
	for i := 0; i < *clients; i++ {
		c, err := net.Dial("tcp", *target)
		kit.Must(err)
		connections = append(connections, c)
	}
	kit.Commands(kit.Listen(*addr), func(_ net.Conn, n int) string {
		var running sync.WaitGroup
		for _, c := range connections {
			c := c
			running.Add(1)
			go func() {
				defer running.Done()
				buf := []byte("ping")
				for i := 0; i < n; i++ {
					_, err := c.Write(buf)
					kit.Must(err)
					_, err = io.ReadFull(c, buf)
					kit.Must(err)
				}
			}()
		}
		running.Wait()
		return "done"
	})
}
