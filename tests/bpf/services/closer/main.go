// Connections closed under their readers. A command "N" opens N loopback
// connections, parks a reader on each, closes all and answers "done". True numbers:
// N close wakeups (runtime.netpollgoready, in deadline_wakeups; inlined in Go 1.19)
// that no event caused and no syscall follows; 2N ready calls or one or two more, as each Close waits for its
// reader to leave; the command's one productive wakeup; at most N productive write wakeups of the dials;
// nothing spurious.
package main

import (
	"flag"
	"net"
	"sync"
	"time"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	flag.Parse()
	inner := kit.Bind("127.0.0.1:0")
	kit.Commands(kit.Listen(*addr), func(_ net.Conn, n int) string {
		var ours, peers []net.Conn
		var readers sync.WaitGroup
		for i := 0; i < n; i++ {
			c, err := net.Dial("tcp", inner.Addr().String())
			kit.Must(err)
			p, err := inner.Accept() // dialled already: does not park
			kit.Must(err)
			ours, peers = append(ours, c), append(peers, p)
			readers.Add(1)
			go func() {
				defer readers.Done()
				c.Read(make([]byte, 1))
			}()
		}
		time.Sleep(50 * time.Millisecond) // for the readers to park
		for _, c := range ours {
			c.Close()
		}
		readers.Wait()
		for _, p := range peers {
			p.Close() // after its reader: a FIN would wake it
		}
		return "done"
	})
}
