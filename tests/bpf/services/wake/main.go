// wake has goroutines that are woken by something other than clients.
//
//	-dir D     a goroutine parked in watch reads the inotify events of files in D: one productive wakeup for
//	           each spaced change
//	-ticks N   N goroutines in tick, each on a ticker of its own, every 5 ms: a ready call each, by a timer
package main

import (
	"flag"
	"os"
	"syscall"
	"time"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "", "address to listen on")
	dir := flag.String("dir", "", "directory to watch")
	ticks := flag.Int("ticks", 0, "tickers")
	flag.Parse()
	l := kit.Bind(*addr)
	if *dir != "" {
		fd, err := syscall.InotifyInit1(syscall.IN_NONBLOCK | syscall.IN_CLOEXEC)
		kit.Must(err)
		_, err = syscall.InotifyAddWatch(fd, *dir, syscall.IN_MODIFY)
		kit.Must(err)
		go watch(os.NewFile(uintptr(fd), "inotify"))
	}
	for i := 0; i < *ticks; i++ {
		go tick(time.NewTicker(5 * time.Millisecond))
	}
	kit.Ready(l)
	kit.Serve(l, kit.Echo)
}

func watch(f *os.File) {
	buf := make([]byte, 4096)
	for {
		if _, err := f.Read(buf); err != nil {
			return
		}
	}
}

func tick(t *time.Ticker) {
	for range t.C {
	}
}
