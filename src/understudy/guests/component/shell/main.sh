main() {
    [ $# -ge 1 ] || usage 'version | discover | begin | end | commit | run | cleanup'
    verb=$1
    shift
    case $verb in
        version) printf 'understudy-guest\t1\n' ;;
        discover) discover && printf 'discovered\n' ;;
        begin | end | commit | run | cleanup | watch) "$verb" "$@" ;;
        *) usage 'version | discover | begin | end | commit | run | cleanup' ;;
    esac
}

# One line, so that all of the file has been read before anything is done.
main "$@"; exit $?
