// Ready calls of the runtime's own, beside the program's. A command "N" collects garbage N times, while other
// goroutines run that are to be stopped for it, and wakes a goroutine N times. True numbers: N ready calls of the
// program's own, beside those that the command itself may take; of the runtime's at least one in most of the N
// collections, which wakes the sweeper.
package main

import (
	"flag"
	"net"
	"runtime"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	flag.Parse()
	wake := make(chan bool)
	go func() {
		for range wake {
		}
	}()
	kit.Commands(kit.Listen(*addr), func(_ net.Conn, n int) string {
		for i := 0; i < n; i++ {
			runtime.GC()
			runtime.Gosched() // the other one parks
			send(wake)
		}
		return "done"
	})
}

func send(wake chan bool) { wake <- true }
