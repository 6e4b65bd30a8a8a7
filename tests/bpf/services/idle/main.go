// One listener, and -tickers. True numbers: no wakeups and no events; with 50 tickers of 10 ms 4600 ready
// calls a second, one per tick (the last ticker is 18 % slower than the first), and polls that time out or
// are interrupted (how many depends on the scheduler).
package main

import (
	"flag"
	"time"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	tickers := flag.Int("tickers", 0, "how many tickers run")
	period := flag.Duration("period", 10*time.Millisecond, "their period")
	flag.Parse()
	for i := 0; i < *tickers; i++ {
		// Shifted and unequal, so that they don't share polls.
		go func(every time.Duration) {
			for range time.Tick(every) {
			}
		}(*period + *period*time.Duration(i)/270)
	}
	kit.Serve(kit.Listen(*addr), kit.Echo)
}
