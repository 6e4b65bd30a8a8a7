// Echo over TCP. True numbers: each spaced ping = one productive read wakeup,
// resolved by read; nothing spurious, stale or abandoned.
package main

import (
	"crypto/sha256"
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
	work := flag.Int("work", 0, "checksums of a KiB to compute for each message")
	locked := flag.Bool("locked", false, "each connection on a thread of its own")
	flag.Parse()
	runtime.GOMAXPROCS(*cpu)
	kit.Serve(kit.Listen(*addr), func(c net.Conn) {
		if *locked {
			runtime.LockOSThread()
		}
		if *delay == 0 && *work == 0 {
			kit.Echo(c)
		}
		for buf := make([]byte, 64<<10); ; {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			for i := 0; i < *work; i++ {
				sha256.Sum256(buf[:1024])
			}
			time.Sleep(*delay)
			c.Write(buf[:n])
		}
	})
}
