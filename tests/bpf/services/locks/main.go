// Goroutines that wait for mutexes, and time themselves how long. A command "WORD N" on any connection:
//
//   - mutex: N times locks a sync.Mutex that all connections share, and holds it for 3 ms.
//   - rhythm: the same, after sleeping six times. So a goroutine stops eight times a round, and the runtime, which
//     samples every eighth stop, meets all of its waits or none.
//   - write, read: the same with a sync.RWMutex, locked for writing or for reading.
//   - alone: N times locks a mutex of its own, for 1 ms. Meanwhile goroutines wait for a sync.WaitGroup, a
//     sync.Cond and a channel.
//   - deadlock: leaves two goroutines that wait for each other's mutex for ever.
//   - sleep, burn: waits for a timer, or uses the CPU, for N ms.
//
// The answer: the ns that the connection's goroutine waited for mutexes. -goroutines: so many others, which wait
// for a channel.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"services/kit"
)

const hold = 3 * time.Millisecond

var (
	shared sync.Mutex
	both   sync.RWMutex
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	cpu := flag.Int("cpu", 2, "GOMAXPROCS")
	goroutines := flag.Int("goroutines", 0, "further goroutines")
	flag.Parse()
	runtime.GOMAXPROCS(*cpu)
	for i := 0; i < *goroutines; i++ {
		go func() { <-make(chan bool) }()
	}
	do := map[string]func(int) time.Duration{
		"mutex": crowd, "rhythm": rhythm, "write": write, "read": read, "alone": alone, "deadlock": deadlock, "sleep": sleep, "burn": burn,
	}
	kit.Serve(kit.Listen(*addr), func(c net.Conn) {
		for lines := bufio.NewScanner(c); lines.Scan(); {
			word, number, _ := strings.Cut(lines.Text(), " ")
			n, err := strconv.Atoi(number)
			kit.Must(err)
			fmt.Fprintln(c, int64(do[word](n)))
		}
	})
}

func crowd(n int) (waited time.Duration) {
	for ; n > 0; n-- {
		waited += enter()
		time.Sleep(hold)
		leave()
	}
	return waited
}

func rhythm(n int) (waited time.Duration) {
	for ; n > 0; n-- {
		for i := 0; i < 6; i++ {
			time.Sleep(20 * time.Microsecond)
		}
		waited += crowd(1)
	}
	return waited
}

//go:noinline
func enter() time.Duration {
	begun := time.Now()
	shared.Lock()
	return time.Since(begun)
}

//go:noinline
func leave() {
	shared.Unlock()
}

func write(n int) (waited time.Duration) {
	for ; n > 0; n-- {
		begun := time.Now()
		both.Lock()
		waited += time.Since(begun)
		time.Sleep(hold)
		both.Unlock()
	}
	return waited
}

func read(n int) (waited time.Duration) {
	for ; n > 0; n-- {
		begun := time.Now()
		both.RLock()
		waited += time.Since(begun)
		time.Sleep(hold)
		both.RUnlock()
	}
	return waited
}

func sleep(n int) time.Duration {
	time.Sleep(time.Duration(n) * time.Millisecond)
	return 0
}

func burn(n int) time.Duration {
	for begun := time.Now(); time.Since(begun) < time.Duration(n)*time.Millisecond; {
	}
	return 0
}

func alone(n int) time.Duration {
	var own, others sync.Mutex
	var group, done sync.WaitGroup
	cond, channel := sync.NewCond(&others), make(chan bool)
	group.Add(1)
	done.Add(2)
	go func() { group.Wait(); done.Done() }()
	go func() { <-channel; done.Done() }()
	signalled := make(chan bool)
	go func() { others.Lock(); cond.Wait(); others.Unlock(); close(signalled) }()
	for ; n > 0; n-- {
		own.Lock()
		time.Sleep(time.Millisecond)
		own.Unlock()
	}
	group.Done()
	close(channel)
	done.Wait()
	for {
		cond.Signal() // without the mutex, for which nobody is to wait
		select {
		case <-signalled:
			return 0
		case <-time.After(time.Millisecond):
		}
	}
}

func deadlock(int) time.Duration {
	var a, b sync.Mutex
	var locked sync.WaitGroup
	locked.Add(2)
	embrace := func(own, other *sync.Mutex) {
		own.Lock()
		locked.Done()
		locked.Wait()
		other.Lock()
	}
	go embrace(&a, &b)
	go embrace(&b, &a)
	locked.Wait()
	return 0
}
