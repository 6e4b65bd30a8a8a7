// Wakes one of its goroutines a known number of times: for `python -m pytest_netpoll doctor`.
//
// On SIGUSR1 it sends itself as many bytes as its argument says over TCP, each one only when the reader is
// parked: one productive wakeup per byte, and no other wakeups.
package main

import (
	"bytes"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// A goroutine that the runtime shows in this state is already in its pollDesc, because the world is stopped.
func parked() bool {
	stacks := make([]byte, 64<<10)
	return bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("[IO wait"))
}

func main() {
	wakeups, err := strconv.Atoi(os.Args[1])
	must(err)
	start := make(chan os.Signal, 1)
	signal.Notify(start, syscall.SIGUSR1)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	writer, err := net.Dial("tcp", listener.Addr().String())
	must(err)
	reader, err := listener.Accept()
	must(err)
	must(listener.Close())

	got := make(chan bool)
	go func() {
		for b := make([]byte, 1); ; {
			_, err := reader.Read(b)
			must(err)
			got <- true
		}
	}()
	fmt.Println("ready")
	<-start
	for i := 0; i < wakeups; i++ {
		for !parked() {
			time.Sleep(100 * time.Microsecond)
		}
		_, err := writer.Write([]byte{1})
		must(err)
		<-got
	}
	fmt.Println("done")
	select {}
}
