// Echo on one CPU that -spin goroutines never release. True numbers: as echo, but a woken reader queues
// behind them, and the scheduler takes the CPU from each after 10 ms or more: wake-to-run latency grows with
// their number.
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
