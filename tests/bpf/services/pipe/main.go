// Messages through an os.Pipe to a reader goroutine. True numbers: a command "N" =
// N productive read wakeups on a pipe and one on the TCP connection; the writer's
// N sleeps are N ready calls.
package main

import (
	"flag"
	"net"
	"os"
	"time"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	gap := flag.Duration("gap", 2*time.Millisecond, "pause after each message")
	flag.Parse()
	r, w, err := os.Pipe()
	kit.Must(err)
	go func() {
		for buf := make([]byte, 64); ; {
			_, err := r.Read(buf)
			kit.Must(err)
		}
	}()
	kit.Commands(kit.Listen(*addr), func(_ net.Conn, n int) string {
		for i := 0; i < n; i++ {
			kit.Parked(2) // its reader, and the acceptor
			w.Write([]byte("message"))
			time.Sleep(*gap)
		}
		return "done"
	})
}
