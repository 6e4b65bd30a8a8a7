// Command server echoes the bytes that it gets. With -fault it does so in one of the
// ways that wake goroutines for nothing, or late.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"net/http"
	"sort"
	"strings"
	"syscall"
	"time"
)

// A fault replaces a part of the healthy service; what it leaves nil stays healthy.
type fault struct {
	start  func()                 // runs beside the service
	serve  func(*net.TCPListener) // instead of serve
	handle func(*net.TCPConn)     // instead of echo
	redial func(failures int)     // instead of backOff
}

var faults = map[string]fault{
	"none":       {},
	"dup":        {handle: echoWatched},
	"herd":       {serve: servePreforked},
	"tickers":    {start: startTickers},
	"starve":     {start: startRehash},
	"busy-poll":  {start: stopGracefully, handle: echoUntilStopped},
	"stale":      {handle: echoDrained},
	"broadcast":  {start: startSubscribers, handle: echoAnnounced},
	"spin":       {serve: serveHastily},
	"unbuffered": {handle: echoUnbuffered},
	"stampede":   {redial: dialAtOnce},
}

var waiters = flag.Int("waiters", 1000, "subscribers woken by each message of -fault=broadcast")

func main() {
	addr := flag.String("addr", "127.0.0.1:7000", "address of the echo service")
	web := flag.String("http", "", "address of the HTTP endpoint; empty for none")
	upstream := flag.String("upstream", "", "address of a service to hold -links to; empty for none")
	links := flag.Int("links", 10, "connections to -upstream")
	files := flag.Uint64("files", 0, "descriptors that the service may have, as of ulimit -n; 0: as it is")
	name := flag.String("fault", "none", "one of "+strings.Join(faultNames(), ", "))
	flag.Parse()
	f, known := faults[*name]
	if !known {
		log.Fatalf("unknown -fault=%s: choose one of %s", *name, strings.Join(faultNames(), ", "))
	}
	if isWorker() {
		serve(inheritedListener(), echo)
		return
	}

	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	if *files != 0 {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: *files, Max: *files}); err != nil {
			log.Fatal(err)
		}
	}
	if f.start != nil {
		f.start()
	}
	if *web != "" {
		go serveHTTP(*web)
	}
	if f.redial == nil {
		f.redial = backOff
	}
	for i := 0; *upstream != "" && i < *links; i++ {
		go holdLink(*upstream, f.redial)
	}
	fmt.Println("ready on", listener.Addr())
	switch {
	case f.serve != nil:
		f.serve(listener.(*net.TCPListener))
	case f.handle != nil:
		serve(listener.(*net.TCPListener), f.handle)
	default:
		serve(listener.(*net.TCPListener), echo)
	}
}

func faultNames() []string {
	var names []string
	for name := range faults {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func serve(listener *net.TCPListener, handle func(*net.TCPConn)) {
	const shortest, longest = 5 * time.Millisecond, time.Second
	pause := shortest
	for {
		conn, err := listener.AcceptTCP()
		if errors.Is(err, syscall.EMFILE) {
			time.Sleep(pause)
			if pause *= 2; pause > longest {
				pause = longest
			}
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		pause = shortest
		go handle(conn)
	}
}

// echo parks in Read, is woken once per message, and finds it there.
func echo(conn *net.TCPConn) {
	defer conn.Close()
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			return
		}
	}
}

// holdLink reads until the upstream closes, and dials it again.
func holdLink(upstream string, redial func(failures int)) {
	for failures := 0; ; failures++ {
		conn, err := net.Dial("tcp", upstream)
		if err == nil {
			failures = 0
			io.Copy(io.Discard, conn)
			conn.Close()
		}
		redial(failures)
	}
}

// backOff waits for a random part of 10 ms, doubled after each failure up to 640 ms. The randomness keeps links
// that were lost together from coming back together.
func backOff(failures int) {
	if failures > 6 {
		failures = 6
	}
	longest := 10 * time.Millisecond << failures
	time.Sleep(time.Duration(rand.Int63n(int64(longest))))
}

func serveHTTP(addr string) {
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") })
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	log.Fatal(http.ListenAndServe(addr, nil))
}
