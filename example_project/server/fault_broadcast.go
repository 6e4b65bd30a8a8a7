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

// Done: every session waits on one sync.Cond for messages, and looks when woken
// whether this one is its own.
//
// Seen: one message, one network wakeup, and a thousand goroutines made runnable to
// find that it was not theirs: wakeups_per_event is about -waiters.
//
// Fix: a channel for each session, and send only to the one concerned.
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
