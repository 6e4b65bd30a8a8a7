// Echo that panics at the message "boom", on another goroutine and after the answer. So many goroutines are
// parked that their stacks fill more than a screen with GOTRACEBACK=all. At "quit" it exits with status 0.
package main

import (
	"errors"
	"flag"
	"net"
	"os"
	"runtime/debug"
	"time"

	"services/kit"
)

func explode() {
	time.Sleep(time.Millisecond)
	panic(errors.New("boom\n::error::not a command"))
}

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	flag.Parse()
	debug.SetTraceback("all")
	for i := 0; i < 40; i++ {
		go func() { select {} }()
	}
	kit.Serve(kit.Listen(*addr), func(c net.Conn) {
		for buf := make([]byte, 64); ; {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			c.Write(buf[:n])
			switch string(buf[:n]) {
			case "boom":
				go explode()
			case "quit":
				os.Exit(0)
			}
		}
	})
}
