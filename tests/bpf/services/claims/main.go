// An echo service for the experiments in docs/claims.md:
//
//	-sleepers N   N more goroutines sleep, 1 ms at a time
//	-hogs N       N more goroutines compute forever
//	-conn KIND    how connections are read and written; see waitfree.go
//	-answerers    answers each message of 4 bytes from a separate goroutine
//	-upstream A   holds -links connections to A, and handles dead ones as -redial says; see links.go
//	-target A     a client instead: a command "N" makes -clients connections send -batch pings at once N times each,
//	              and is answered with the seconds that took, and of the batches' times the median and p99 in µs
//
// True numbers for spaced messages, with -conn net: as services/echo.
package main

import (
	"flag"
	"io"
	"net"
	"runtime"
	"time"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	cpu := flag.Int("cpu", 0, "GOMAXPROCS; 0 for all")
	sleepers := flag.Int("sleepers", 0, "goroutines that sleep")
	hogs := flag.Int("hogs", 0, "goroutines that compute")
	kind := flag.String("conn", "net", "net, trylock or nonblock")
	answerers := flag.Bool("answerers", false, "a goroutine answers each message")
	upstream := flag.String("upstream", "", "where -links go")
	links := flag.Int("links", 100, "connections to -upstream")
	redial := flag.String("redial", "now", "never, now or backoff")
	target := flag.String("target", "", "be a client of this echo")
	clients := flag.Int("clients", 16, "connections to -target")
	batch := flag.Int("batch", 1, "pings at once")
	flag.Parse()
	runtime.GOMAXPROCS(*cpu)
	listener := kit.Bind(*addr)
	if *target != "" {
		connections := dial(*target, *clients)
		kit.Ready(listener)
		kit.Commands(listener, func(_ net.Conn, n int) string { return load(connections, n, *batch) })
		return
	}
	for i := 0; i < *sleepers; i++ {
		go func() {
			for {
				time.Sleep(time.Millisecond)
			}
		}()
	}
	for i := 0; i < *hogs; i++ {
		go func() {
			for {
			}
		}()
	}
	for i := 0; *upstream != "" && i < *links; i++ {
		go hold(*upstream, *redial)
	}
	kit.Ready(listener)
	kit.Serve(listener, func(c net.Conn) {
		c = wrap[*kind](c.(*net.TCPConn))
		if *answerers {
			answer(c)
		} else {
			kit.Echo(patient{c})
		}
	})
}

func answer(c net.Conn) {
	c = patient{c}
	for {
		message := make([]byte, 4)
		if _, err := io.ReadFull(c, message); err != nil {
			return
		}
		go c.Write(message)
	}
}
