// Ready calls of the runtime's own, beside the program's. A command "N" collects garbage N times, while other
// goroutines run that are to be stopped for it, and wakes a goroutine N times. True numbers: N ready calls of the
// program's own, beside those that the command itself may take; of the runtime's at least one in most of the N
// collections, which wakes the sweeper. With -alone nobody else runs, and memory is given back to the system and a
// finalizer run, too: no ready call of the program's own.
package main

import (
	"flag"
	"net"
	"runtime"
	"runtime/debug"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	alone := flag.Bool("alone", false, "wake nobody")
	flag.Parse()
	wake := make(chan bool)
	go func() {
		for range wake {
		}
	}()
	kit.Commands(kit.Listen(*addr), func(_ net.Conn, n int) string {
		for i := 0; i < n; i++ {
			if *alone {
				garbage := make([]byte, 1<<20)
				runtime.SetFinalizer(&garbage[0], func(*byte) {})
				debug.FreeOSMemory() // collects it
				continue
			}
			runtime.GC()
			runtime.Gosched() // the other one parks
			send(wake)
		}
		return "done"
	})
}

func send(wake chan bool) { wake <- true }
