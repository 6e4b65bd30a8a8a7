package main

import (
	"errors"
	"net"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

var stopping int32

// Done: readers should notice a shutdown, so each interrupts its Read every
// millisecond to check a flag.
//
// Seen: a thousand deadline wakeups a second per idle connection, each with a timer,
// a futile read and a park. No event causes them, so spurious is 0:
// deadline_wakeups and wakeups_per_event show them.
//
// Fix: read without a deadline, and on shutdown call SetReadDeadline(time.Now())
// on the open connections once.
func echoUntilStopped(conn *net.TCPConn) {
	defer conn.Close()
	buf := make([]byte, 4096)
	for atomic.LoadInt32(&stopping) == 0 {
		conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		n, err := conn.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			return
		}
	}
}

func stopGracefully() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		atomic.StoreInt32(&stopping, 1)
		time.Sleep(20 * time.Millisecond) // the readers look every millisecond
		os.Exit(0)
	}()
}
