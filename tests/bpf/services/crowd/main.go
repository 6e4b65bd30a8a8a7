// A command "N" starts N goroutines at once. For the time of -for they recurse so deeply that their stacks
// have to be moved, leave garbage, and each pass values to another goroutine that they start. The command is
// answered when all have ended. -alone: without those other goroutines. True numbers with -alone: on one P
// (-cpu 1) one of the N runs and N-1 are in the run queues, apart from the runtime's own
// (GODEBUG=schedtrace=20 shows the same).
package main

import (
	"flag"
	"net"
	"runtime"
	"strconv"
	"sync"
	"time"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	cpu := flag.Int("cpu", 0, "GOMAXPROCS; 0 for all")
	busy := flag.Duration("for", 50*time.Millisecond, "how long they run")
	alone := flag.Bool("alone", false, "start no others")
	flag.Parse()
	runtime.GOMAXPROCS(*cpu)
	kit.Commands(kit.Listen(*addr), func(_ net.Conn, n int) string {
		var all sync.WaitGroup
		end := time.Now().Add(*busy)
		for i := 0; i < n; i++ {
			all.Add(1)
			go func() {
				defer all.Done()
				for time.Now().Before(end) {
					if *alone {
						deep(300)
						continue
					}
					there, back := make(chan int), make(chan int)
					go func() { back <- deep(<-there) }()
					there <- 300
					<-back
				}
			}()
		}
		all.Wait()
		return strconv.Itoa(n)
	})
}

// deep takes about a kilobyte of stack, and one of garbage, for each level.
func deep(n int) int {
	var frame [128]int
	if n == 0 {
		return 0
	}
	garbage := make([]*int, 128)
	for i := range frame {
		frame[i] = n
		garbage[i] = &n
	}
	return deep(n-1) + frame[n%128] + len(garbage)
}
