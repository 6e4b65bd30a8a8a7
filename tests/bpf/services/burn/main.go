// Uses known shares of CPU time. -do shares: two goroutines, heavy and light, compute in turn, and heavy does
// three times as much as light: 75 % and 25 % of the CPU time. -do yield: a goroutine only calls
// runtime.Gosched. -do hog: a goroutine computes for as long as the service runs, on the only P. A command
// "N" runs shares and yield until they have used N ms of CPU time; with hog it is an ordinary message, which is
// answered late.
package main

import (
	"flag"
	"net"
	"runtime"
	"syscall"
	"time"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	do := flag.String("do", "shares", "what uses the CPU")
	flag.Parse()
	if *do == "hog" {
		runtime.GOMAXPROCS(1)
		go hog()
	}
	kit.Commands(kit.Listen(*addr), func(_ net.Conn, n int) string {
		end := used() + time.Duration(n)*time.Millisecond
		for *do != "hog" && used() < end {
			if *do == "yield" {
				yield()
			} else {
				heavy()
				light()
			}
		}
		return "done"
	})
}

func used() time.Duration {
	var usage syscall.Rusage
	kit.Must(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// One iteration takes the same time in each of them. They call nothing: the caller of a function without a
// frame isn't seen.
const turn = 100_000

var sink uint64

//go:noinline
func heavy() {
	x := sink | 1
	for n := 3 * turn; n > 0; n-- {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	sink = x
}

//go:noinline
func light() {
	x := sink | 1
	for n := turn; n > 0; n-- {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	sink = x
}

//go:noinline
func yield() {
	for i := 0; i < 1000; i++ {
		runtime.Gosched()
	}
}

//go:noinline
func hog() {
	for x := uint64(1); ; {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		sink = x
	}
}
