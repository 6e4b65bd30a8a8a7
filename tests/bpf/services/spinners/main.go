// Echo on one CPU that -spin goroutines never let go. True numbers: as echo, but a woken
// reader queues behind each of them, and the scheduler takes the CPU from one after 10 ms:
// wake-to-run latency is about 10 ms for each, so twice as many double it.
package main

import (
	"flag"
	"runtime"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	spin := flag.Int("spin", 1, "goroutines that compute")
	flag.Parse()
	runtime.GOMAXPROCS(1)
	for i := 0; i < *spin; i++ {
		go func() {
			for {
			}
		}()
	}
	kit.Serve(kit.Listen(*addr), kit.Echo)
}
