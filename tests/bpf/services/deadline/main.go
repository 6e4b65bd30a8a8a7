// Reads that time out. A command "K" makes its connection read K times with a
// deadline 5 ms ahead and answers how many timed out: K, if the client is silent.
// True numbers: K deadline wakeups (runtime.netpollgoready; inlined in Go 1.19), and
// no other ready calls; K+1 times EAGAIN in a row on one fd with no event between them,
// so 0 spurious and 0 stale retries; and the command's one productive wakeup.
package main

import (
	"errors"
	"flag"
	"net"
	"os"
	"strconv"
	"time"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	wait := flag.Duration("wait", 5*time.Millisecond, "how far ahead each deadline is")
	flag.Parse()
	kit.Commands(kit.Listen(*addr), func(c net.Conn, k int) string {
		timeouts, buf := 0, make([]byte, 1)
		for i := 0; i < k; i++ {
			c.SetReadDeadline(time.Now().Add(*wait))
			if _, err := c.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
				timeouts++
			}
		}
		c.SetReadDeadline(time.Time{})
		return strconv.Itoa(timeouts)
	})
}
