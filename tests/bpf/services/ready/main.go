// One message wakes N goroutines, and is echoed when all of them have run. True
// numbers: each spaced message = one productive read wakeup and N ready calls
// (runtime.ready), each for a goroutine parked on its own channel (-via chan)
// or all on one sync.Cond (-via cond); -via both wakes N in each way, one after the
// other. A few more per second are the runtime's own.
package main

import (
	"flag"
	"net"
	"runtime"
	"sync"
	"sync/atomic"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	via := flag.String("via", "chan", "chan, cond or both")
	n := flag.Int("n", 100, "goroutines to wake")
	flag.Parse()
	var left int64
	var wakes []func()
	if *via != "cond" {
		channels := make([]chan int, *n)
		for i := range channels {
			c := make(chan int)
			channels[i] = c
			go func() {
				for range c {
					atomic.AddInt64(&left, -1)
				}
			}()
		}
		wakes = append(wakes, func() {
			for _, c := range channels {
				c <- 0
			}
		})
	}
	if *via != "chan" {
		// They only read-lock it: otherwise the woken goroutines would wake one another to get the lock.
		var lock sync.RWMutex
		cond, seq := sync.NewCond(lock.RLocker()), 0
		for i := 0; i < *n; i++ {
			go func() {
				lock.RLock()
				for seen := 0; ; seen = seq {
					for seen == seq {
						cond.Wait()
					}
					atomic.AddInt64(&left, -1)
				}
			}()
		}
		wakes = append(wakes, func() {
			lock.Lock()
			seq++
			lock.Unlock()
			cond.Broadcast()
		})
	}
	kit.Serve(kit.Listen(*addr), func(c net.Conn) {
		buf := make([]byte, 64<<10)
		for {
			k, err := c.Read(buf)
			if err != nil {
				return
			}
			for _, wake := range wakes {
				atomic.StoreInt64(&left, int64(*n))
				wake()
				for atomic.LoadInt64(&left) > 0 {
					runtime.Gosched() // parking would sometimes cost one more ready call
				}
			}
			c.Write(buf[:k])
		}
	})
}
