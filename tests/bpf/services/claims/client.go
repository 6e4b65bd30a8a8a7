package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"sort"
	"sync"
	"time"

	"services/kit"
)

func dial(target string, n int) (connections []net.Conn) {
	for i := 0; i < n; i++ {
		c, err := net.Dial("tcp", target)
		kit.Must(err)
		connections = append(connections, c)
	}
	return connections
}

// load is the answer to a command.
func load(connections []net.Conn, n, batch int) string {
	took := make([]time.Duration, len(connections)*n)
	var running sync.WaitGroup
	began := time.Now()
	for i, c := range connections {
		running.Add(1)
		go func(c net.Conn, took []time.Duration) {
			defer running.Done()
			pings := bytes.Repeat([]byte("ping"), batch)
			for i := range took {
				sent := time.Now()
				_, err := c.Write(pings)
				kit.Must(err)
				_, err = io.ReadFull(c, pings)
				kit.Must(err)
				took[i] = time.Since(sent)
			}
		}(c, took[i*n:(i+1)*n])
	}
	running.Wait()
	seconds := time.Since(began).Seconds()
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	return fmt.Sprintf("%.3f %d %d", seconds, took[len(took)/2].Microseconds(), took[len(took)*99/100].Microseconds())
}
