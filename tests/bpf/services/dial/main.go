// A client: a command "N" dials -target (an echo) N times in sequence, sends one byte, reads one, closes.
// True numbers per dial: one productive write wakeup (connect, resolved by getsockopt) and one productive
// read wakeup. Each is missing if the other side was quicker than the park (with a target that answers after
// a few milliseconds, there are exactly N read wakeups). Nothing is spurious. The command itself is one more
// read wakeup. With -together all N dial at once: a target that does not accept for a while makes all
// connects park.
package main

import (
	"flag"
	"net"
	"sync"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	target := flag.String("target", "", "an echo service")
	together := flag.Bool("together", false, "dial all at once")
	flag.Parse()
	kit.Commands(kit.Listen(*addr), func(_ net.Conn, n int) string {
		var dials sync.WaitGroup
		for i := 0; i < n; i++ {
			if *together {
				dials.Add(1)
				go func() {
					defer dials.Done()
					dial(*target)
				}()
				continue
			}
			dial(*target)
		}
		dials.Wait()
		return "done"
	})
}

func dial(target string) {
	buf := make([]byte, 1)
	c, err := net.Dial("tcp", target)
	kit.Must(err)
	defer c.Close()
	c.Write(buf)
	_, err = c.Read(buf)
	kit.Must(err)
}
