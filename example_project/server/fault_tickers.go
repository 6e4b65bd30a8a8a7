package main

import (
	"sync/atomic"
	"time"
)

var configVersion int64

// Done: fifty components each check every 10 ms or so whether the configuration has
// changed or metrics need flushing; the periods differ "to even out the load".
//
// Seen: the idle service polls thousands of times a second. epoll_pwait times out
// with nothing, or returns only because one thread woke another one for a timer:
// polls_per_event, timeout_polls and break_polls are high, spurious is 0.
//
// Fix: notify on change (a channel, a callback), or share one slow ticker.
func startTickers() {
	for i := 0; i < 50; i++ {
		go pollConfig(10*time.Millisecond + time.Duration(i)*37*time.Microsecond)
	}
}

func pollConfig(every time.Duration) {
	var seen int64
	for range time.Tick(every) {
		if version := atomic.LoadInt64(&configVersion); version != seen {
			seen = version
		}
	}
}
