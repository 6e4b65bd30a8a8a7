// Makes the Go scheduler work, and answers what the program itself knows about that. -hogs: goroutines that
// use the CPU all the time. A command "N" does N rounds of -do:
//
//   - wakes: 16 goroutines, parked on channels of their own, are woken at once. Answer: the median time in ns
//     from sending to receiving, as the goroutines measure it.
//   - mutex: 64 new goroutines wait for a sync.Mutex that is held for 2 ms. Answer: the ns that they waited
//     for it, all together.
//   - channel: 4 goroutines contend for the lock of one channel, N·1,000 sends. Answer: 0.
//
// Further words of the answer are how the runtime's own metrics grew meanwhile: ns of
// /sync/mutex/wait/total:seconds (0 before Go 1.20), the events in /sched/latencies:seconds, and the least and
// first ns beyond of the bucket that holds the median of these.
package main

import (
	"flag"
	"fmt"
	"math"
	"net"
	"runtime"
	"runtime/metrics"
	"sort"
	"sync"
	"time"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	cpu := flag.Int("cpu", 2, "GOMAXPROCS")
	hogs := flag.Int("hogs", 0, "goroutines that use the CPU")
	do := flag.String("do", "wakes", "what a command does")
	flag.Parse()
	runtime.GOMAXPROCS(*cpu)
	for i := 0; i < *hogs; i++ {
		go hog()
	}
	round := map[string]func(int) int64{"wakes": wakes, "mutex": mutex, "channel": channel}[*do]
	kit.Commands(kit.Listen(*addr), func(_ net.Conn, n int) string {
		waited, before := read()
		own := round(n)
		longer, after := read()
		for i := range after.Counts {
			after.Counts[i] -= before.Counts[i]
		}
		events, low, high := median(after)
		return fmt.Sprint(own, longer-waited, events, low, high)
	})
}

func hog() {
	for i := 0; ; i++ {
	}
}

func read() (int64, *metrics.Float64Histogram) {
	samples := []metrics.Sample{{Name: "/sync/mutex/wait/total:seconds"}, {Name: "/sched/latencies:seconds"}}
	metrics.Read(samples)
	waited := 0.0
	if samples[0].Value.Kind() == metrics.KindFloat64 {
		waited = samples[0].Value.Float64()
	}
	return int64(math.Round(waited * 1e9)), samples[1].Value.Float64Histogram()
}

func median(h *metrics.Float64Histogram) (events uint64, low, high int64) {
	for _, count := range h.Counts {
		events += count
	}
	seen := uint64(0)
	for i, count := range h.Counts {
		seen += count
		if seen >= (events+1)/2 {
			return events, int64(math.Round(h.Buckets[i] * 1e9)), int64(math.Round(h.Buckets[i+1] * 1e9))
		}
	}
	return events, 0, 0
}

func wakes(n int) int64 {
	const woken = 16
	var took []int64
	var each sync.Mutex
	var all, ready sync.WaitGroup
	channels := make([]chan time.Time, woken)
	for i := range channels {
		c := make(chan time.Time, 1)
		channels[i] = c
		ready.Add(1)
		go func() {
			ready.Done()
			for sent := range c {
				since := int64(time.Since(sent))
				each.Lock()
				took = append(took, since)
				each.Unlock()
				all.Done()
			}
		}()
	}
	ready.Wait()
	for ; n > 0; n-- {
		time.Sleep(time.Millisecond) // all are parked
		all.Add(woken)
		for _, c := range channels {
			c <- time.Now()
		}
		all.Wait()
	}
	for _, c := range channels {
		close(c)
	}
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	return took[len(took)/2]
}

func mutex(n int) int64 {
	var lock, adding sync.Mutex
	var total int64
	for ; n > 0; n-- {
		var all, ready sync.WaitGroup
		lock.Lock()
		for i := 0; i < 64; i++ {
			all.Add(1)
			ready.Add(1)
			go func() {
				defer all.Done()
				ready.Done()
				begun := time.Now()
				lock.Lock()
				lock.Unlock()
				waited := int64(time.Since(begun))
				adding.Lock()
				total += waited
				adding.Unlock()
			}()
		}
		ready.Wait()
		time.Sleep(2 * time.Millisecond)
		lock.Unlock()
		all.Wait()
	}
	return total
}

func channel(n int) int64 {
	var all sync.WaitGroup
	c := make(chan int, 64)
	for i := 0; i < 2; i++ {
		all.Add(2)
		go func() {
			defer all.Done()
			for i := 0; i < n*500; i++ {
				c <- i
			}
		}()
		go func() {
			defer all.Done()
			for i := 0; i < n*500; i++ {
				<-c
			}
		}()
	}
	all.Wait()
	return 0
}
