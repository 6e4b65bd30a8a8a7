// An echo that listens late: until -after has passed, or SIGUSR1 came, it only prints "waiting" and has no
// pollDesc that calibration could use as proof (without -after not even an epoll instance, which needs a
// timer or an fd). True numbers: before, nothing at all; after, as echo.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	after := flag.Duration("after", 0, "when to listen at the latest; 0 waits for SIGUSR1, without a timer")
	flag.Parse()
	wake := make(chan os.Signal, 1)
	signal.Notify(wake, syscall.SIGUSR1)
	fmt.Println("waiting")
	var passed <-chan time.Time
	if *after > 0 {
		passed = time.After(*after)
	}
	select {
	case <-wake:
	case <-passed:
	}
	kit.Serve(kit.Listen(*addr), kit.Echo)
}
