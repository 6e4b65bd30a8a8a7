package main

import (
	"net"
	"sync"
)

var (
	newsLock sync.RWMutex
	news     = sync.NewCond(newsLock.RLocker())
	newsSeq  int
)

// Done: every session waits for messages on one sync.Cond. When it is woken, it
// checks whether the message is its own.
//
// Seen: one message, one network wakeup, and a thousand goroutines made runnable to
// find that it was not theirs: wakeups_per_event is about -waiters.
//
// Fix: give each session its own channel, and send only to the right one.
func startSubscribers() {
	for i := 0; i < *waiters; i++ {
		go subscribe()
	}
}

func subscribe() {
	newsLock.RLock()
	for seen := newsSeq; ; seen = newsSeq {
		for seen == newsSeq {
			news.Wait()
		}
	}
}

func echoAnnounced(conn *net.TCPConn) {
	defer conn.Close()
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		newsLock.Lock()
		newsSeq++
		newsLock.Unlock()
		news.Broadcast()
		if _, err := conn.Write(buf[:n]); err != nil {
			return
		}
	}
}
