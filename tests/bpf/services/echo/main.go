// Echo over TCP. True numbers: each spaced ping = one productive read wakeup,
// resolved by read; nothing spurious, stale or abandoned.
package main

import (
	"flag"
	"net"
	"runtime"
	"time"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	cpu := flag.Int("cpu", 0, "GOMAXPROCS; 0 leaves it")
	delay := flag.Duration("delay", 0, "before each answer, for whoever waits for it to park")
	locked := flag.Bool("locked", false, "each connection on a thread of its own")
	flag.Parse()
	runtime.GOMAXPROCS(*cpu)
	kit.Serve(kit.Listen(*addr), func(c net.Conn) {
		if *locked {
			runtime.LockOSThread()
		}
		if *delay == 0 {
			kit.Echo(c)
		}
		for buf := make([]byte, 64<<10); ; {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			time.Sleep(*delay)
			c.Write(buf[:n])
		}
	})
}
