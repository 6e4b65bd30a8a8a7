// net/http with net/http/pprof under /debug/pprof/. Each request for "/" has two goroutines contend for a mutex that
// one holds for 5 ms, in contend, and waits for them, in wait. True numbers: a request on its own connection
// = one productive read wakeup, and one or two more at its end.
package main

import (
	"flag"
	"io"
	"log"
	"net/http"
	_ "net/http/pprof"
	"runtime"
	"sync"
	"time"

	"services/kit"
)

var mu sync.Mutex

func contend(done *sync.WaitGroup) {
	mu.Lock()
	time.Sleep(5 * time.Millisecond)
	mu.Unlock()
	done.Done()
}

func wait(done *sync.WaitGroup) { done.Wait() }

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	flag.Parse()
	runtime.SetMutexProfileFraction(1)
	runtime.SetBlockProfileRate(1)
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		var done sync.WaitGroup
		done.Add(2)
		go contend(&done)
		go contend(&done)
		wait(&done)
		io.WriteString(w, "hello\n")
	})
	log.Fatal(http.Serve(kit.Listen(*addr), nil))
}
