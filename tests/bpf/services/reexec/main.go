// An echo that replaces itself: on SIGUSR1 a thread other than the main one execs the program again, like a
// service that updates itself. The main thread then ends before the process does. True numbers: as echo,
// before and after; the pid stays. With -then it execs that as a shell command instead.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	then := flag.String("then", "", "script of the shell to run in its place")
	flag.Parse()
	runtime.LockOSThread() // the main goroutine on the main thread, so the other one isn't
	l := kit.Listen(*addr)
	go kit.Serve(l, kit.Echo)
	usr1 := make(chan os.Signal, 1)
	signal.Notify(usr1, syscall.SIGUSR1)
	done := make(chan bool)
	go func() {
		<-usr1
		fmt.Println("exec in thread", syscall.Gettid(), "of", syscall.Getpid())
		if *then != "" {
			kit.Must(syscall.Exec("/bin/sh", []string{"sh", "-c", *then}, os.Environ()))
		}
		exe, err := os.Executable()
		kit.Must(err)
		kit.Must(syscall.Exec(exe, os.Args, os.Environ()))
	}()
	<-done
}
